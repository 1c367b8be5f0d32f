//! `libdcmi.so`: what the driver's management interface tells of a device, forwarded to `libcann_emulator.so`.

#[macro_use]
#[path = "../../src/forward.rs"]
mod forward;

forward! {
    dcmiEmulatorVersion dcmi_get_card_id_device_id_from_logicid dcmi_get_card_list dcmi_get_dcmi_version
    dcmi_get_device_ecc_info dcmi_get_device_health dcmi_get_device_num_in_card dcmi_get_device_temperature
    dcmi_init
}
